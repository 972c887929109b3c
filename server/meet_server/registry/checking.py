"""Whether a control, of either kind, may be loaded beside those of a bundle. All of it is looked at in memory."""

from __future__ import annotations

from meet_bundle import Bundle, BundleError, LoraControls, Preference
from meet_bundle.digests import folder_entries, listing_digest
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


def check_own(preference: Preference, bundle: Bundle) -> None:
    """Raises ControlRefused where a control of the bundle's own is not what it was when the bundle was opened."""
    path, name = preference.path, preference.name
    try:
        found = listing_digest(folder_entries(bundle.path, (path,)), path)
    except BundleError as error:
        raise ControlRefused(name, str(error)) from None
    except OSError as error:
        raise ControlRefused(name, f"{bundle.path / path} cannot be read: {error.strerror}") from None
    if found != preference.digest:
        raise ControlRefused(
            name,
            f"{bundle.path / path} has the digest {found[:12]}, and had {preference.digest[:12]} when the bundle was "
            "opened: it was altered or replaced; restart the server to serve what is there now",
        )
