"""Families as a user meets them: the list for machines, and a family described in a file."""

import json
import struct

FAMILY = """
model_type = "bamboo"
experts_keys = ["how_many"]
top_k_key = "best"
renormalise = true
[[tensors]]
name = "model.layers.{L}.choose.weight"
role = "router"
[[tensors]]
name = "model.layers.{L}.stems"
role = "expert_down"
stacked = true
"""


def write_model(directory):
    """Three experts of 2 x 2 and their router, in F32."""
    directory.mkdir()
    shapes = {"model.layers.0.choose.weight": [3, 2], "model.layers.0.stems": [3, 2, 2]}
    header, data = {}, b""
    for name, shape in shapes.items():
        count = shape[0] * 2 * (shape[2] if len(shape) == 3 else 1)
        values = struct.pack(f"<{count}f", *[len(data) + i + 1 for i in range(count)])
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (directory / "config.json").write_text(json.dumps({"model_type": "bamboo", "hidden_size": 2, "how_many": 3, "best": 2}))
    return directory


def test_the_list_says_class_layout_and_what_is_exact(core):
    families = {row["name"]: row for row in json.loads(core("list", "families", "--json").stdout)["families"]}
    assert len(families) >= 45
    gpt_oss = families["gpt_oss"]
    assert (gpt_oss["class"], gpt_oss["trainable"], gpt_oss["exact"]["plain_top_1"]) == ("S3", True, True)
    assert "interleaved" in gpt_oss["layout"]
    assert families["qwen3_moe"]["class_depends_on"] == "norm_topk_prob"
    assert families["phimoe"]["exact"] == {"plain_top_1": False, "scaled_top_k": False}
    assert "class" not in families["llama"]


def test_a_family_file_stands_in_for_a_table(core, tmp_path):
    model = write_model(tmp_path / "m")
    (tmp_path / "bamboo.toml").write_text(FAMILY)
    file = ("--family-file", tmp_path / "bamboo.toml")
    unknown = core("inspect", model)
    assert unknown.returncode == 3 and "'bamboo' is not a family" in unknown.stderr
    assert json.loads(core("inspect", model, "--json", *file).stdout)["experts"] == 3
    done = core("expand", model, tmp_path / "out", "--experts", "2x", "--router-init", "copy", *file)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "config.json").read_text())["how_many"] == 6
    assert core("verify", model, tmp_path / "out", *file).returncode == 0
    assert json.loads(core("inspect", tmp_path / "out", "--json", *file).stdout)["experts"] == 6
    (tmp_path / "bamboo.toml").write_text(FAMILY.replace("expert_down", "expert_dawn"))
    wrong = core("inspect", model, *file)
    assert wrong.returncode == 3 and "bamboo.toml" in wrong.stderr and "expert_down" in wrong.stderr


def test_what_a_family_file_does_not_say_is_not_known(core, tmp_path):
    model, file = write_model(tmp_path / "m"), tmp_path / "bamboo.toml"
    verdicts = {}
    for gate in ("", 'gate = "sigmoid_topk"\n', 'gate = "topk_softmax"\n'):
        file.write_text(gate + FAMILY)
        told = json.loads(core("expand", model, tmp_path / "out", "--family-file", file, "--router-init", "copy", "--dry-run", "--json").stdout)
        verdicts[gate] = (told["exact"], told["exactness"])
        refused = core("expand", model, tmp_path / "out", "--family-file", file, "--top-k", "scale", "--dry-run")
        assert (refused.returncode == 2) == (gate == ""), refused.stderr
        assert gate or "`gate`" in refused.stderr
        assert ("family file does not say" in core("inspect", model, "--family-file", file).stdout) == (gate == "")
    assert verdicts[""][0] is None and verdicts[""][1].startswith("Unknown: ") and "`gate`" in verdicts[""][1]
    assert verdicts['gate = "sigmoid_topk"\n'][0] is False and verdicts['gate = "topk_softmax"\n'][0] is False
    # with one expert a token it depends on whether gates are renormalised
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "best": 1}))
    for line, exact in (("renormalise = true", True), ("renormalise = false", False), ("", None)):
        file.write_text('gate = "softmax_topk"\n' + FAMILY.replace("renormalise = true", line))
        told = json.loads(core("expand", model, tmp_path / "out", "--family-file", file, "--router-init", "copy", "--dry-run", "--json").stdout)
        assert told["exact"] is exact, told["exactness"]
        assert exact is not None or "`renormalise`" in told["exactness"]
