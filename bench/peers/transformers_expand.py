"""What transformers offers: load the model, double its experts in memory, save it.

usage: transformers_expand.py MODEL OUT
"""

import sys

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main(source: str, target: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    config = AutoConfig.from_pretrained(source)
    experts = config.num_experts
    config.num_experts = 2 * experts
    with torch.device("meta"):
        grown = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    state = model.state_dict()
    for name, wanted in grown.state_dict().items():
        if state[name].shape != wanted.shape:  # stacked experts and router rows
            state[name] = torch.cat([state[name], state[name]])
    grown.load_state_dict(state, assign=True)
    grown.save_pretrained(target)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
