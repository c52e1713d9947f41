"""Images for a network, and all of it that an explanation has to leave alone."""

import torch


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def state(network):
    """All that must be as before."""
    return {
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "modules": [(name, id(module)) for name, module in network.named_modules()],
        "training": [module.training for module in network.modules()],
        "hooks": [
            len(hooks)
            for m in network.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        ],
        "requires grad": [p.requires_grad for p in network.parameters()],
        "grad": [id(p.grad) for p in network.parameters()],
        "values": [(id(v), v._version) for v in network.state_dict(keep_vars=True).values()],
        "rng": torch.get_rng_state().tolist(),
    }
