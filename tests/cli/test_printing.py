"""Figures as people read them."""

from tokvid.cli.printing import markdown, table

FIGURES = {"of": {"psnr_1s": 20.1234, "repeat_psnr_1s": 19.0, "psnr_2s": 18.5, "ssim": 0.5, "repeat_psnr_2s": None}}


def test_seconds_stand_side_by_side():
    assert table(FIGURES | {"size": [8, 24], "frames": 3}).splitlines() == [
        "of",
        "  psnr by second           20.12  18.5",
        "  repeat_psnr by second    19  None",
        "  ssim                     0.5",
        "size                     [8, 24]",
        "frames                   3",
    ]
    assert "| of: psnr by second | 20.12  18.5 |" in markdown(FIGURES)


def test_a_long_name_makes_room_for_itself():
    assert table({"a" * 30: 1, "b": 2}).splitlines() == ["a" * 30 + " 1", "b" + " " * 30 + "2"]
