"""What infer.py --attention does: load a trained model, ask where it looks in one image, write the picture."""

from __future__ import annotations

import logging
from pathlib import Path

from datasets.build import build_source_reader
from datasets.loading.readers import open_source
from datasets.loading.text_notes import text_notes
from datasets.modalities import MODALITIES
from solver.commands.opening import ModelChoice, instructions_taken, open_trained
from solver.commands.search import output_path
from solver.reports.attention import NO_MAPS, attention_maps, require_maps, six_tasks, write_attention
from solver.reports.grid import printable
from solver.run_directory import check_no_artefact
from solver.search.arguments import SearchOptions
from solver.search.named import named_instruction, named_picture
from solver.search.queries import check_encodable
from utils.errors import UserError
from utils.files import check_folder, real_path
from utils.log import configure_logging

logger = logging.getLogger(__name__)


def run_attention(options: SearchOptions) -> str:
    """Write where the model looks in one image under six instructions; return what is to be printed.

    Raises UserError for wrong input, before any file is written.
    """
    configure_logging()
    choice = ModelChoice.of(options)
    query, told = named_picture(options), named_instruction(options)
    (image,) = query.sources
    output = output_path(options.attention, Path())
    check_folder(output.parent, "--attention")
    check_no_artefact(output, "--attention")
    for source in (image, told):
        if source is not None and MODALITIES[source.modality].is_image:
            open_source(source)
            if real_path(source.value) == real_path(output):
                raise UserError(f"{output} would be replaced, and it is what is looked at; choose another name")
    if not instructions_taken(choice).queries:
        raise UserError(NO_MAPS)
    opened = open_trained(choice)
    trained = opened.trained
    require_maps(trained.model)
    check_encodable((query,), trained.config.model.modalities)
    reader = build_source_reader(trained.config.data, trained.config.model)
    asked = six_tasks(image, told, options.parts.get("text"))
    notes = text_notes((one.source for one in asked), reader)
    shown = attention_maps(trained.model, image, asked, reader, opened.device, opened.spec.config.precision)
    for note in notes:
        logger.warning("%s", note)
    title = f"Where {trained.config.name} looks in {printable(image.value)}"
    write_attention(output, image, trained.config.model.image_size, shown, title)
    lines = [f"{one.asked.task.value}: {printable(one.asked.source.value)}: {one.module}" for one in shown]
    return "\n".join([*lines, *notes, f"written: {output}"])
