// Small helpers. Text is always set as text, never as markup.

export const find = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const NAMES = {
  rgb: "Photo", nir: "Infrared", cp: "Colour drawing", sk: "Sketch", text: "Description", instruction: "Instruction",
  instruction_image: "Instruction picture", like: "Like this picture",
};

export const named = (part) => NAMES[part] || part;

// An answer of the server as JSON; its error is one sentence.
export async function asked(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer; is it still running?");
  }
  if (response.ok) return response;
  let sentence = `The server answers ${response.status}.`;
  try {
    sentence = (await response.json()).error || sentence;
  } catch {
    // Not ours, then the number has to do.
  }
  throw new Error(sentence);
}
