"""Writes large inputs for the fuzzers, about SIZE bytes each, into FOLDER/NAME: what grows with a file's length shows here and not in mutated small ones.

    python3 fuzz/large_inputs.py FOLDER [SIZE]
"""

import json
import pathlib
import struct
import sys


def texts(size):
    """JSON of each shape that a reader could be slow at, or run out of memory or stack."""
    yield "zeros", "[" + ",".join(["0"] * (size // 2)) + "]"
    yield "deep", "[" * (size // 2) + "]" * (size // 2)
    yield "keys", json.dumps({f"key{i}": i for i in range(size // 18)})
    yield "same_keys", "{" + ",".join(['"key":0'] * (size // 8)) + "}"
    yield "string", json.dumps("\u00e9" * (size // 6))
    yield "digits", "1" * size
    yield "objects", json.dumps([{}] * (size // 4))


def config(size):
    base = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 2, "hidden_size": 64, "moe_intermediate_size": 32,
            "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "max_position_embeddings": 512}
    yield "many_keys", json.dumps({**base, **{f"key{i}": i for i in range(size // 18)}})
    yield "long_list", json.dumps({**base, "mlp_only_layers": list(range(size // 8))})
    yield "many_layers", json.dumps({**base, "num_hidden_layers": 1 << 22})


def plan(size):
    def text(before, after, parents):
        return f'coppice_plan = 1\nseed = 0\nexperts = [{before}, {after}]\norder = "append"\nselect = "uniform"\n[methods]\nexpert_init = "copy"\n' \
               'router_init = "copy"\noptimizer_state = "copy"\nbalance_bias = "copy"\n[parents]\n' + parents

    yield "many_layers", text(2, 4, "".join(f"{i} = [0, 1, 0, 1]\n" for i in range(min(4000, size // 22))))  # no model has more
    many = size // 16
    yield "many_experts", text(many, 2 * many, f"0 = {list(range(many)) * 2}\n")
    yield "nested_tables", "\n".join(f"[{'.'.join('a' * depth)}]" for depth in range(1, int(size ** 0.5)))


def lineage(size):
    step = {"command": "expand", "version": "0.1.0", "seed": 0, "source_digest": "aa", "experts": [2, 4], "order": "append", "methods": {}, "parents": {"0": [0, 1, 0, 1], "1": [0, 1, 0, 1]}}
    yield "many_steps", json.dumps({"coppice_lineage": 1, "steps": [step] * (size // len(json.dumps(step)))})
    yield "many_layers", json.dumps({"coppice_lineage": 1, "steps": [{**step, "parents": {str(i): [0, 1, 0, 1] for i in range(size // 20)}}]})
    many = size // 8
    yield "many_experts", json.dumps({"coppice_lineage": 1, "steps": [{**step, "experts": [many, 2 * many], "parents": {"0": list(range(many)) * 2}}]})


def scores(size):
    values = [1.0] * (size // 12)
    part = {"sum": {"0": values}}
    yield "many_experts", json.dumps({"coppice_scores": 1, "model": {"digest": "a", "model_type": "mixtral", "layers": 1, "experts": len(values)},
                                      "tokens": {"digest": "t", "seen": 1, "batch_tokens": 1, "batches": 1}, "metrics": {"load": {"fc1": part, "fc2": part}}})


def index(size):
    yield "many_tensors", json.dumps({"weight_map": {f"model.layers.{i}.w": f"model-{i:05}.safetensors" for i in range(size // 50)}})


def safetensors(size):
    header = json.dumps({f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(size // 65)})
    yield "many_tensors", struct.pack("<Q", len(header)) + header.encode() + b"\0" * (size // 65)


def trainer(size):
    state = {"coppice_trainer": 1, "step": 7, "next_sample": 56, "tokens_seen": 3584, "recent_losses": [7.5], "settings": {}, "data": []}
    yield "many_losses", json.dumps({**state, "recent_losses": [7.5] * (size // 5)})
    yield "many_settings", json.dumps({**state, "settings": {f"key{i}": 0 for i in range(size // 14)}})


def family(size):
    head = 'model_type = "m"\nexperts_keys = ["e"]\ntop_k_key = "k"\n'
    rows = "".join(f'[[tensors]]\nname = "layers.{{L}}.t{i}.{{X}}"\nrole = "expert_down"\n' for i in range(size // 70))
    yield "many_tensors", head + rows + '[[tensors]]\nname = "layers.{L}.gate"\nrole = "router"\n%%\n{"e": 4, "k": 2}'
    yield "long_name", head + f'[[tensors]]\nname = "{"{L}" * (size // 3)}"\nrole = "router"\n'
    few = rows[: rows.index("[[", 2)] + '[[tensors]]\nname = "layers.{L}.gate"\nrole = "router"\n'
    yield "many_wildcards", head + few + f'[[tensors]]\nname = "{"**e*" * (size // 400)}z"\nrole = "other"\n%%\n{{"model_type": "m", "e": 4, "k": 2}}'


def infer(size):
    def model(experts, layers=1, hidden=8):
        tensors = {"model.embed_tokens.weight": ["F32", 10, hidden]}
        for layer in range(layers):
            tensors[f"model.layers.{layer}.mlp.gate.weight"] = ["F32", experts, hidden]
            tensors |= {f"model.layers.{layer}.mlp.experts.{x}.{side}.weight": ["F32", hidden, hidden] for x in range(experts) for side in ("up", "down")}
        return json.dumps({"config": {"model_type": "toy", "num_hidden_layers": layers, "hidden_size": hidden, "num_experts": experts, "num_experts_per_tok": 2}, "tensors": tensors})

    yield "many_experts", model(size // 150)
    yield "many_layers", model(2, layers=size // 400)
    yield "all_sizes_equal", model(100, layers=size // 15000, hidden=100)
    yield "many_names", json.dumps({"config": {"num_experts": 4, "num_experts_per_tok": 2}, "tensors": {f"t{i}.{i}.w": ["F32", 4, 4] for i in range(size // 35)}})
    yield "long_name", json.dumps({"config": {"num_experts": 4, "num_experts_per_tok": 2}, "tensors": {"0." * (size // 2): ["F32", 4, 4]}})
    yield "many_counts", json.dumps({"config": {f"num_experts_{i}": 4 for i in range(size // 22)}, "tensors": {"a.gate.weight": ["F32", 4, 4]}})


def spm(size):
    def varint(n):
        out = b""
        while n > 127:
            out += bytes([n & 127 | 128])
            n >>= 7
        return out + bytes([n])

    def field(text):
        return b"\x0a" + varint(len(text)) + text

    yield "many_pieces", b"".join(field(field(b"%06d" % i)) for i in range(size // 10))
    yield "long_piece", field(field(b"a" * size))
    letters = [bytes([65 + i]) for i in range(4)]
    yield "long_pieces", b"".join(field(field(letter * length)) for letter in letters for length in range(1, 257))


def journal(size):
    head = '{"coppice_journal":1,"part":"1/1","plan":"aa","source":"bb"}\n'
    yield "many_lines", head + "done 1\n" * (size // 7)
    yield "long_line", head + "done" + " 1" * (size // 2) + "\n"


def points(size):
    yield "many_lines", "2 1e3 1\n" * (size // 8)
    yield "long_line", "2 " * (size // 2)
    yield "long_word", "2" * size


def main():
    folder, size = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1 << 20
    of = {"json": texts, "config": config, "plan": plan, "lineage": lineage, "scores": scores, "index": index, "safetensors": safetensors, "trainer": trainer,
          "family": family, "infer": infer, "spm": spm, "journal": journal, "conversion": texts, "points": points}
    for name, make in of.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for case, content in make(size):
            (folder / name / f"large_{case}").write_bytes(content if isinstance(content, bytes) else content.encode())


if __name__ == "__main__":
    main()
