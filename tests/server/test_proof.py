"""The proof refuses what is not what was trained, by name."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from running_server import Server

from meet_bundle import Manifest, Preference, Probe
from meet_server.engine.proof import FLOAT32, HALF, check, effect_share, prove, tolerance
from meet_server.registry.admission import ControlRefused

CONTROLLED, UNCONTROLLED = (-1.0, -2.0, -3.0), (-1.5, -1.0, -4.0)


def recorded(controlled: Sequence[float] = CONTROLLED, uncontrolled: Sequence[float] = UNCONTROLLED) -> Preference:
    return Preference(
        name="concise",
        axis="length",
        path="controls/concise",
        digest="0" * 64,
        trained_examples=1,
        probe=Probe(
            token_ids=(1, 2, 3, 4),
            start=1,
            controlled=tuple(controlled),
            uncontrolled=tuple(uncontrolled),
            dtype="float32",
        ),
    )


def test_exact_values_pass() -> None:
    check(recorded(), CONTROLLED, UNCONTROLLED, FLOAT32)


@pytest.mark.parametrize(
    ("controlled", "uncontrolled", "message"),
    [
        (CONTROLLED, CONTROLLED, "does not reproduce its probe without the control"),
        (UNCONTROLLED, UNCONTROLLED, "is 0.00 times what was recorded"),
        ((-1.0, -2.0, -3.1), UNCONTROLLED, "does not reproduce its probe with the control"),
        ((math.nan, -2.0, -3.0), UNCONTROLLED, "nan times"),
        (CONTROLLED, (math.nan, -1.0, -4.0), "without the control"),
        ((-math.inf, -2.0, -3.0), UNCONTROLLED, "control concise"),
    ],
)
def test_other_values_are_refused(controlled: Sequence[float], uncontrolled: Sequence[float], message: str) -> None:
    with pytest.raises(ControlRefused, match=message) as caught:
        check(recorded(), controlled, uncontrolled, FLOAT32)
    assert str(caught.value).startswith("control concise: ")


@pytest.mark.parametrize("strength", [0.0, 0.4, 2.0, -1.0])
def test_in_bfloat16_an_adapter_that_is_not_applied_as_trained_is_still_seen(strength: float) -> None:
    """Its whole effect is within the tolerance."""
    weak = tuple(value + 0.08 for value in UNCONTROLLED)
    measured = tuple(value + 0.08 * strength for value in UNCONTROLLED)
    with pytest.raises(ControlRefused, match=f"is {strength:.2f} times what was recorded"):
        check(recorded(controlled=weak), measured, UNCONTROLLED, HALF)


def test_rounding_that_both_share_cancels() -> None:
    weak = tuple(value + 0.08 for value in UNCONTROLLED)
    noise = (0.05, -0.04, 0.03)
    controlled = [value + error for value, error in zip(weak, noise, strict=True)]
    uncontrolled = [value + error for value, error in zip(UNCONTROLLED, noise, strict=True)]
    preference = recorded(controlled=weak)
    check(preference, controlled, uncontrolled, HALF)
    assert effect_share(preference.probe, controlled, uncontrolled) == pytest.approx(1)


def test_a_control_without_effect_on_its_probe_passes() -> None:
    check(recorded(controlled=UNCONTROLLED), UNCONTROLLED, UNCONTROLLED, FLOAT32)


def test_tolerance_is_the_looser_of_two_dtypes() -> None:
    assert tolerance("float32", "float32") == FLOAT32
    assert tolerance("float32", "bfloat16") == tolerance("bfloat16", "float32") == HALF
    assert tolerance("float16", "float16") == HALF


def test_the_engine_proves_right_controls_and_refuses_falsified_ones(server: Server, manifest: Manifest) -> None:
    """On the running engine, with its own controls."""
    engine, numbered = server.engine, list(server.app.state.served.live)
    server.call(prove(engine, list(zip(numbered, manifest.preferences, strict=True))))

    right, other = manifest.preferences
    falsified = other.probe.model_copy(update={"controlled": tuple(v - 0.1 for v in other.probe.controlled)})
    wrong = other.model_copy(update={"probe": falsified})
    with pytest.raises(ControlRefused, match="control detailed: "):
        server.call(prove(engine, [(numbered[0], right), (numbered[1], wrong)]))

    swapped = [(numbered[1], right), (numbered[0], other)]  # each other's weights
    with pytest.raises(ControlRefused, match="control concise"):
        server.call(prove(engine, swapped))
