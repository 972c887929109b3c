"""Whether a control, of either kind, may be loaded beside those of a bundle. All of it is looked at in memory."""

from __future__ import annotations

from meet_bundle import Bundle, LoraControls, Preference
from meet_server.errors import ServerError
from meet_server.registry.admission import ControlRefused, a_matrices, check_lora_files, model_shapes
from meet_server.registry.record import RECORD, Files, read_record
from meet_server.registry.soft_prompt_admission import check_soft_prompt_files
from meet_server.registry.store import Store


def check(files: Files, bundle: Bundle) -> Preference:
    """The preference that the files are of, if it may be loaded beside the bundle's. Nothing is written.

    Raises RequestError `invalid_upload` and ControlRefused.
    """
    preference = read_record(files, bundle.manifest.model_digest)
    control = {name: content for name, content in files.items() if name != RECORD}
    controls = bundle.manifest.controls
    if not isinstance(controls, LoraControls):
        check_soft_prompt_files(control, preference, controls, bundle)
        return preference
    if preference.first_token_id is not None:
        raise ControlRefused(preference.name, "it is a soft prompt; the controls of this bundle are LoRA adapters")
    shared = a_matrices(bundle.path / bundle.manifest.preferences[0].path) if controls.shared_a else {}
    check_lora_files(preference.name, control, controls, model_shapes(bundle.model_path), shared)
    return preference


def check_kept(name: str, content: str, store: Store, bundle: Bundle) -> None:
    """As `check`, of a content that a registry holds: a disk, a hand or another process may have altered it since.

    Raises ControlRefused, naming the preference that it is served as.
    """
    try:
        check(store.files(content), bundle)
    except ControlRefused:
        raise
    except ServerError as error:
        raise ControlRefused(name, str(error)) from error
