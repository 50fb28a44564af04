import pytest

from core.gpu_runtime.cuda_choice import NoRuntime, Nvidia, NvidiaCard, choose


@pytest.mark.parametrize(
    ("driver", "capability", "tag"),
    [
        ("580.65.06", (8, 9), "cu130"),
        ("591.12", (12, 0), "cu130"),
        ("560.94", (8, 6), "cu126"),
        ("591.12", (6, 1), "cu126"),
        ("528.33", (9, 0), "cu126"),
    ],
)
def test_the_newest_build_that_driver_and_card_allow(driver: str, capability: tuple[int, int], tag: str):
    assert choose(Nvidia(driver, (NvidiaCard("Card", capability),))).tag == tag


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Nvidia("580.1", ()), "No NVIDIA card"),
        (Nvidia("470.1", (NvidiaCard("Old", (3, 5)),)), "not supported by PyTorch. Its compute capability is 3.5"),
        (Nvidia("560.94", (NvidiaCard("New", (12, 0)),)), "Version 580 or newer is needed"),
        (Nvidia("470.1", (NvidiaCard("Card", (8, 6)),)), "Version 528 or newer is needed"),
        (Nvidia("odd", (NvidiaCard("Card", (8, 6)),)), "too old"),
    ],
)
def test_a_reason_where_there_is_none(machine: Nvidia, words: str):
    with pytest.raises(NoRuntime, match=words):
        choose(machine)
