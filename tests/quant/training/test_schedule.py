import pytest

from dq.quant.training.schedule import Progress, Schedule


def at(iteration: int, epoch: int = 0, total: int = 100) -> Progress:
    return Progress(iteration=iteration, epoch=epoch, num_iterations=total)


def test_a_share_is_reached_by_steps() -> None:
    schedule = Schedule(freeze_norm_after=0.25, freeze_ranges_after=0.7)
    assert [schedule.freezes_norm(at(i)) for i in (0, 24, 25, 99)] == [False, False, True, True]
    assert [schedule.freezes_ranges(at(i)) for i in (69, 70)] == [False, True]


def test_an_epoch_and_an_iteration_do_not_depend_on_the_length() -> None:
    schedule = Schedule(
        round_after={"iteration": 5}, freeze_norm_after={"epoch": 2}, freeze_ranges_after=1
    )
    assert [schedule.quantizes(at(i)) for i in (0, 4, 5)] == [False, False, True]
    assert not schedule.freezes_norm(at(90, epoch=1))
    assert schedule.freezes_norm(at(10, epoch=2))
    assert not schedule.freezes_ranges(at(100))


def test_zero_is_at_once_and_one_is_never() -> None:
    schedule = Schedule(freeze_norm_after=0, freeze_ranges_after=1)
    assert schedule.freezes_norm(at(0))
    assert schedule.quantizes(at(0))
    assert not schedule.freezes_ranges(at(100))


def test_ranges_are_not_frozen_before_quantization_starts() -> None:
    schedule = Schedule(round_after=0.5, freeze_ranges_after=0.2)
    assert not schedule.freezes_ranges(at(30))
    assert schedule.freezes_ranges(at(50))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"freeze_norm_after": 1.5}, "freeze_norm_after is 1.5; it is a share"),
        ({"freeze_ranges_after": {"epochs": 3}}, r"use dict\(epoch=N\), dict\(iteration=N\)"),
        ({"freeze_ranges_after": {"epoch": 3, "iteration": 1}}, r"use dict\(epoch=N\)"),
        ({"freeze_norm_after": {"epoch": -1}}, "use 0 or more"),
        ({"freeze_norm_after": {"epoch": True}}, "use 0 or more"),
        ({"round_after": 1.0}, "never quantize"),
        ({"calibration_batches": 0}, "must be 1 or more"),
        ({"norm_batches": -1}, "must be 0 or more"),
    ],
)
def test_a_mistake_is_refused_with_the_correct_form(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**given)
