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


def write_unknown(directory, experts=4, extra=()):
    """A family that no table has: numbered experts and a router, in F32."""
    directory.mkdir()
    shapes = {"model.embed_tokens.weight": [10, 6], **dict(extra)}
    for layer in range(2):
        at = f"model.layers.{layer}.ffn."
        shapes[at + "router.weight"] = [experts, 6]
        for expert in range(experts):
            shapes |= {f"{at}experts.{expert}.gate.weight": [5, 6], f"{at}experts.{expert}.up.weight": [5, 6], f"{at}experts.{expert}.down.weight": [6, 5]}
    header, data = {}, b""
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        values = struct.pack(f"<{count}f", *[(len(data) + i) % 97 + 1 for i in range(count)])
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {"model_type": "tomorrow", "num_hidden_layers": 2, "hidden_size": 6, "num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 5}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_family_is_inferred_never_silently(core, tmp_path):
    model, file = write_unknown(tmp_path / "m"), tmp_path / "tomorrow.toml"
    refused = core("expand", model, tmp_path / "out")
    assert refused.returncode == 3 and "--infer" in refused.stderr and "--family-file auto" in refused.stderr
    shown = core("inspect", model, "--infer", "--write-family", file)
    assert shown.returncode == 0, shown.stderr
    for text in ("rule 1: 4 experts, by num_experts", "rule 3: model.layers.{L}.ffn.router.weight [4, 6]", "rule 2: ", "unknown: gate function"):
        assert text in shown.stdout
    found = json.loads(core("inspect", model, "--infer", "--json").stdout)
    assert found["experts"] == 4 and found["family"]["gate"] == "unknown" and {t["rule"] for t in found["tensors"]} == {2, 3}
    assert core("inspect", model, "--infer", "--write-family", file).returncode == 2, "an existing file is not replaced"
    done = core("expand", model, tmp_path / "auto", "--router-init", "copy", "--family-file", "auto")
    assert done.returncode == 0 and "is inferred" in done.stderr and "Unknown" in done.stdout
    assert core("verify", model, tmp_path / "auto", "--family-file", "auto").returncode == 0
    by_file = core("expand", model, tmp_path / "file", "--router-init", "copy", "--family-file", file)
    assert by_file.returncode == 0, by_file.stderr
    assert (tmp_path / "file" / "model.safetensors").read_bytes() == (tmp_path / "auto" / "model.safetensors").read_bytes()


def test_what_cannot_be_inferred_is_refused_until_it_is_stated(core, tmp_path):
    model, file = write_unknown(tmp_path / "m"), tmp_path / "f.toml"
    assert core("inspect", model, "--infer", "--write-family", file).returncode == 0
    for options, words in ((["--expert-init", "copy_noise"], "what this tensor of an expert is for"), (["--top-k", "scale"], "gate"), (["--split", "2"], "split")):
        done = core("expand", model, tmp_path / "out", "--family-file", file, *options)
        assert done.returncode in (2, 3) and words in done.stderr, done.stderr
    text = file.read_text().replace('gate = "unknown"', 'gate = "softmax_topk"\nrenormalise = true')
    for name in ("gate", "up", "down"):
        text = text.replace(f'{name}.weight", role = "expert_other"', f'{name}.weight", role = "expert_{name}"')
    file.write_text(text)
    done = core("expand", model, tmp_path / "out", "--family-file", file, "--top-k", "scale", "--router-init", "copy")
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("Exact"), done.stdout + done.stderr
    assert core("expand", model, tmp_path / "noise", "--family-file", file, "--expert-init", "copy_noise").returncode == 0


def test_a_refusal_names_tensor_shape_and_rule(core, tmp_path):
    model = write_unknown(tmp_path / "m", extra={"model.layers.0.ffn.router.table": [4, 3]})
    done = core("inspect", model, "--infer")
    assert done.returncode == 3
    for text in ("model.layers.0.ffn.router.table", "[4, 3]", "rule"):
        assert text in done.stderr
    assert core("expand", model, tmp_path / "out", "--family-file", "auto").returncode == 3 and not (tmp_path / "out").exists()
