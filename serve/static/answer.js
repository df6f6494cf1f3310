// What was found, as the page shows it.
import { find, make, named } from "./dom.js";

const WORDS = { match: "right", other: "other", below: "other outfit" };
const percent = (rate) => `${+(100 * rate).toPrecision(3)}\u00a0%`;

const thumbnail = (hit, alt) => make("img", { src: hit.image, alt, loading: "lazy" });

function verdict(answer) {
  const { calibration, count } = answer, box = find("verdict");
  box.className = "verdict";
  const says = (...lines) => box.replaceChildren(...lines);
  const small = (text) => make("small", {}, text);
  if (!count) return says("No picture of the gallery passes the filters.");
  if (calibration.answer === "not calibrated") {
    // Why, and the remedy, is one of the notes.
    return says("Not calibrated: the most similar pictures, whoever they show.");
  }
  const rate = `${percent(calibration.false_alarm_rate)} false alarms`;
  if (calibration.answer === "nobody") {
    box.classList.add("nobody");
    // A picture of the query itself is no answer, however similar it is.
    const found = answer.results.flatMap((hit) => [hit, ...hit.copies]).filter((hit) => !hit.own_image);
    const least = `The threshold is ${calibration.threshold.toFixed(4)}`;
    const best = found.length ? `, the most similar picture has ${Math.max(...found.map((hit) => hit.similarity)).toFixed(4)}` : "";
    return says(make("b", {}, "Nobody"), ` above the threshold (${rate}).`,
      small(`${least}${best}. What follows is most likely not the person.`));
  }
  box.classList.add("above");
  const pictures = calibration.above === 1 ? "1 picture" : `${calibration.above} pictures`;
  return says(make("b", {}, pictures), ` above the threshold (${rate}).`,
    small(`Threshold ${calibration.threshold.toFixed(4)}. Above it is a candidate, not an identity.`));
}

function chip(part, previews) {
  const chip = make("span", { className: "chip" });
  for (const src of part.image ? [part.image] : previews[part.part] || []) chip.append(make("img", { src, alt: "" }));
  const many = part.pictures > 1 ? ` × ${part.pictures}` : "";
  chip.append(make("b", {}, named(part.part) + many));
  if (part.text) chip.append(make("span", {}, part.text));
  return chip;
}

function alone(answer) {
  const list = answer.alone;
  find("alone").hidden = !list.length;
  find("alone").open = window.innerWidth > 820;
  if (!list.length) return;
  const agreed = list.filter((one) => one.agrees).length;
  const words = agreed === list.length ? "all parts agree with the mix" : `${agreed} of ${list.length} agree with the mix`;
  find("alone-title").textContent = `What each part finds alone: ${words}`;
  const best = answer.results.length ? answer.results[0].index : -1;
  find("alone-list").replaceChildren(...list.map((one) => {
    const mini = make("div", { className: "mini" }, ...one.results.map((hit) => {
      const image = thumbnail(hit, `rank ${hit.rank}: ${hit.name}`);
      image.title = `rank ${hit.rank}, ${hit.similarity.toFixed(4)}, ${hit.name}`;
      if (hit.index === best) image.classList.add("same");
      return image;
    }));
    const rank = one.rank_of_best ? `the mix's best is its #${one.rank_of_best}` : `the mix's best is beyond its #${one.looked_at}`;
    const word = make("span", { className: one.agrees ? "yes" : "no" }, one.agrees ? "agrees" : "differs");
    return make("div", { className: "alone" }, make("b", {}, one.part ? named(one.part) : one.label), mini, make("span", { className: "soft" }, word, `: ${rank}`));
  }));
}

function figure(hit, answer, like) {
  const item = make("li", { className: `hit ${hit.verdict || ""} ${hit.answer === "below" ? "below" : ""}` });
  item.dataset.index = hit.index;
  const link = make("a", { href: hit.original, target: "_blank", rel: "noreferrer", title: hit.name },
    thumbnail(hit, `Result ${hit.rank}: ${hit.name}`));
  const words = make("div", { className: "line" });
  if (hit.own_image) words.append(make("span", { className: "word" }, "the query itself"));
  else if (hit.verdict) words.append(make("span", { className: "word" }, WORDS[hit.verdict]));
  if (hit.answer === "above" || hit.answer === "below") {
    words.append(make("span", { className: `${hit.answer}-word` }, hit.answer === "above" ? "▲ above" : "▽ below"));
  }
  const meter = make("meter", { min: 0, max: 1, value: Math.max(0, Math.min(1, hit.similarity)) });
  meter.setAttribute("aria-label", `Similarity ${hit.similarity.toFixed(4)}`);
  item.append(link, make("div", { className: "line" }, make("b", {}, `#${hit.rank}`), hit.similarity.toFixed(4)),
    ...(answer.similarity === "cosine" ? [meter] : []), words);
  const facts = [hit.person !== null ? `person ${hit.person}` : "", hit.camera ? `camera ${hit.camera}` : "",
    hit.outdated ? `file ${hit.outdated} since` : ""].filter(Boolean).join(" · ");
  if (facts) item.append(make("div", {}, facts));
  item.append(make("div", { className: "name", title: hit.name }, hit.name));
  if (hit.copies.length) {
    const list = hit.copies.slice(0, 8).map((copy) => thumbnail(copy, `near-duplicate ${copy.name}`));
    item.append(make("details", {}, make("summary", {}, `+ ${hit.copies.length} nearly the same`),
      make("div", { className: "copies" }, ...list)));
  }
  const more = make("button", { type: "button", className: "small" }, "More like this");
  more.setAttribute("aria-label", `More like result ${hit.rank}`);
  more.addEventListener("click", () => like(hit.index));
  item.append(more);
  return item;
}

// Show an answer of /api/search. previews: addresses of the pictures that were sent, by part. like: called with the number
// of a picture.
export function show(answer, previews, like) {
  find("welcome").hidden = true;
  find("found").hidden = false;
  find("asked").replaceChildren(...answer.query.parts.map((part) => chip(part, previews)));
  verdict(answer);
  find("notes").replaceChildren(...answer.notes.map((note) => make("li", {}, note)));
  alone(answer);
  const items = [];
  answer.results.forEach((hit, place) => {
    const before = place ? answer.results[place - 1].answer : "above";
    if (hit.answer === "below" && before === "above") {
      items.push(make("li", { className: "cut" }, place ? "below the threshold" : "all below the threshold"));
    }
    items.push(figure(hit, answer, like));
  });
  find("results").replaceChildren(...items);
  find("downloads").hidden = !answer.results.length;
}
