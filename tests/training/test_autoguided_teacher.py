"""A run whose teacher is guided by a weaker one."""

import json

import pytest

from .runs import rows, student_arguments, teacher_arguments, trained


def test_a_run_is_guided_by_a_weaker_teacher_and_holds_to_it(tmp_path):
    """The teacher's evaluations count twice, made_of.json names the guide, and another guide is refused."""
    teacher = trained(tmp_path / "teacher", teacher_arguments("--steps", "2"))
    weaker = trained(tmp_path / "weaker", teacher_arguments("--steps", "1"))
    given = student_arguments(teacher, "--steps", "1", "--log_every", "1", "--objectives.Matching.solver_steps", "2")
    guided = [*given, "--teacher_guide", str(weaker), "--teacher_guidance", "1.5"]
    out, plain = trained(tmp_path / "guided", guided), trained(tmp_path / "plain", given)
    assert [row["teacher_evaluations_per_image"] for row in rows(out)] == [8]
    assert [row["teacher_evaluations_per_image"] for row in rows(plain)] == [4]
    assert rows(out)[0]["loss/Matching"] != rows(plain)[0]["loss/Matching"]
    made_of = json.loads((out / "made_of.json").read_text(encoding="utf-8"))
    assert made_of["teacher_guide"]["digest"] != made_of["teacher"]["digest"]
    with pytest.raises(ValueError, match="changed since is the teacher's guide"):
        trained(out, [*given, "--teacher_guide", str(teacher), "--teacher_guidance", "1.5"])
    with pytest.raises(ValueError, match=r"teacher_guidance: 1\.5 there, 1\.7 here"):
        trained(out, [*given, "--teacher_guide", str(weaker), "--teacher_guidance", "1.7"])
    with pytest.raises(ValueError, match="teacher_guidance must be at least 1, the teacher itself"):
        trained(tmp_path / "low", [*given, "--teacher_guidance", "0.5"])
