"""The study of a task circuit whose subject has no bundled dictionary."""

import torch

import tiny_tasks
from isotrace.studies import Setting
from isotrace.studies.task_circuits import TASKS, dictionary_for


def test_quick_settings_train_a_dictionary_once_and_say_so(tmp_path, rotary, monkeypatch):
    monkeypatch.setattr("isotrace.studies.task_circuits.TRAINING_TOKENS", 4_096)
    setting = Setting(quick=True, work=tmp_path, seed=0, progress=lambda items, _: items, dictionaries={})
    data = tiny_tasks.task(rotary)
    made, note = dictionary_for(TASKS["reaction_class"], rotary, data, setting)
    assert "trained here" in note
    assert made.config.n_features == 2 * rotary.d_model
    weights = (tmp_path / "dictionary" / "weights.safetensors").stat().st_mtime_ns
    again, _ = dictionary_for(TASKS["reaction_class"], rotary, data, setting)
    assert (tmp_path / "dictionary" / "weights.safetensors").stat().st_mtime_ns == weights
    assert torch.equal(again.W_enc[0], made.W_enc[0])
