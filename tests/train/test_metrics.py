"""What a run leaves behind, where a library that draws or writes it is missing."""

import importlib.util

from vljax.train.metrics import TensorBoard, plot_loss, without_timing


def test_a_missing_library_costs_its_files_and_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    board = TensorBoard(tmp_path)
    board.write({"step": 1, "loss": 2.0})
    board.close()
    plot_loss(tmp_path)
    assert not [*tmp_path.iterdir()]
    told = capsys.readouterr().err
    assert told == (
        "no TensorBoard files: pip install tensorboardX makes them\n"
        "no loss.png: pip install matplotlib makes them\n"
    )


def test_what_two_runs_have_in_common():
    row = {"step": 1, "loss": 2.0, "seconds": 1.0, "mfu": 0.5, "eta_s": 3.0, "samples": 8}
    assert without_timing(row) == {"step": 1, "loss": 2.0, "samples": 8}
