"""`tokvid data curate`: what it prints, and what it leaves."""


def test_curate(tokvid, movie, tmp_path):
    code, out, _ = tokvid("data", "curate", ".", "--out", tmp_path.parent / "curated")
    assert code == 0 and ".: 1 shots (no faults)\n" in out and "curated: 1 clips, 1.0 s\n" in out
    assert (tmp_path.parent / "curated" / "in.mp4").read_bytes() == (tmp_path / "in.mp4").read_bytes()
    code, out, err = tokvid("data", "curate", ".", "--out", tmp_path.parent / "other", "--keep", "motion > 300")
    assert code == 2 and not out and "none of the 1 shots (no faults) passes --keep 'motion > 300'" in err
    assert not (tmp_path.parent / "other").exists()
