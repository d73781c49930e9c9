"""An LSTM over sequences in which episodes begin: forward and backward written out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def run_lstm(
    lstm: nn.LSTM, inputs: Tensor, starts: Tensor, memory: tuple[Tensor, Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`lstm` over `inputs` (length, num_sequences, input_size), its memory cleared where `starts` (length, num_sequences) is 1.

    `memory` is (hidden, cell), both (num_layers, num_sequences, hidden_size). Returns the last layer's outputs (length,
    num_sequences, hidden_size) and the memory after them. torch's own LSTM cannot clear its memory on the way, so it would
    have to be called step by step; its backward pass is then mostly autograd's bookkeeping.
    """
    keep = (1.0 - starts)[:, :, None]  # (length, num_sequences, 1)
    hidden, cell = memory
    if not is_written_out(lstm):
        outputs = []
        for step, kept in zip(inputs, keep, strict=True):
            output, (hidden, cell) = lstm(step[None], (kept * hidden, kept * cell))
            outputs.append(output)
        return torch.cat(outputs), (hidden, cell)
    last_hidden, last_cell = [], []
    for layer in range(lstm.num_layers):
        inputs, its_cell = _Layer.apply(inputs, keep, hidden[layer], cell[layer], *layer_weights(lstm, layer))
        last_hidden.append(inputs[-1])
        last_cell.append(its_cell)
    return inputs, (torch.stack(last_hidden), torch.stack(last_cell))


def is_written_out(lstm: nn.LSTM) -> bool:
    """Whether it is of the common kind, whose passes are written out here."""
    return lstm.bias and not (lstm.bidirectional or lstm.dropout or lstm.proj_size)


class _Layer(torch.autograd.Function):
    """One layer over a sequence for autograd; the second result is its last cell state, through which no gradient goes."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, keep: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `forward_layer`."""
        outputs, cell, saved = forward_layer(inputs, keep, hidden, cell, weights)
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(cell)
        return outputs, cell

    @staticmethod
    def backward(ctx: Any, *to_results: Tensor) -> tuple[Tensor | None, ...]:
        """See `backward_layer`; the first memory is given, not learned."""
        to_inputs, to_weights = backward_layer(ctx.saved_tensors, to_results[0], further=ctx.needs_input_grad[0])
        return (to_inputs, *(None, None, None), *to_weights)


def layer_weights(lstm: nn.LSTM, layer: int) -> tuple[Tensor, ...]:
    """A layer's input and hidden weights, (4 size, ...), and their biases (4 size,): input, forget, candidate, output gate."""
    return tuple(getattr(lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def prepare_weights(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Of a layer's `weights`: bias (4 size,), input and hidden weights transposed, those of the candidate doubled.

    tanh(x) is 2 sigmoid(2 x) - 1, in half the time and together with the gates.
    """
    size = weights[1].shape[1]
    w_input, w_hidden = weights[0].t().contiguous(), weights[1].t().contiguous()
    bias = weights[2] + weights[3]
    for part in (w_input, w_hidden, bias):
        part[..., 2 * size : 3 * size] *= 2
    return bias, w_input, w_hidden


def forward_layer(
    inputs: Tensor, keep: Tensor, hidden: Tensor, cell: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """One layer over a sequence: outputs (length, num, size), last cell state, and what `backward_layer` needs."""
    bias, w_input, w_hidden = prepare_weights(weights)
    length, num, _ = inputs.shape
    size = hidden.shape[-1]
    gates = torch.addmm(bias, inputs.flatten(0, 1), w_input).view(length, num, 4 * size)
    kept_hidden, kept_cell, outputs, squashed = (torch.empty(length, num, size, device=inputs.device) for _ in range(4))
    minus_one = torch.tensor(-1.0, device=inputs.device)
    for t in range(length):
        torch.mul(hidden, keep[t], out=kept_hidden[t])
        torch.mul(cell, keep[t], out=kept_cell[t])
        gate = gates[t].addmm_(kept_hidden[t], w_hidden).sigmoid_()
        enter, forget, candidate, leave = gate.chunk(4, dim=1)
        torch.add(minus_one, candidate, alpha=2, out=candidate)
        cell = torch.addcmul(forget * kept_cell[t], enter, candidate)
        torch.add(minus_one, (cell + cell).sigmoid_(), alpha=2, out=squashed[t])
        hidden = torch.mul(leave, squashed[t], out=outputs[t])
    return outputs, cell, (inputs, keep, gates, kept_hidden, kept_cell, squashed, weights[0], weights[1])


def backward_layer(saved: Sequence[Tensor], to_outputs: Tensor, further: bool) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """From the loss's gradient by the outputs to those by inputs (`further`; else None) and by the four weights."""
    inputs, keep, gates, kept_hidden, kept_cell, squashed, w_input, w_hidden = saved
    enter, forget, candidate, leave = gates.chunk(4, dim=2)
    # of each step: what a gradient by the cell, or by the hidden state, is multiplied by on its way to each gate
    slopes = torch.empty(*gates.shape[:2], 4, squashed.shape[2], device=gates.device)
    torch.mul(enter * candidate, 1 - enter, out=slopes[:, :, 0])
    torch.mul(forget * kept_cell, 1 - forget, out=slopes[:, :, 1])
    torch.addcmul(enter, enter * candidate, candidate, value=-1, out=slopes[:, :, 2])
    torch.mul(leave * squashed, 1 - leave, out=slopes[:, :, 3])
    to_its_cell = torch.addcmul(leave, leave * squashed, squashed, value=-1)
    kept_forget = forget * keep
    to_gates = torch.empty_like(slopes)
    to_hidden, to_cell = torch.zeros_like(squashed[0]), torch.zeros_like(squashed[0])
    for t in range(len(inputs) - 1, -1, -1):
        to_hidden += to_outputs[t]
        to_cell.addcmul_(to_hidden, to_its_cell[t])
        torch.mul(slopes[t, :, :3], to_cell[:, None], out=to_gates[t, :, :3])
        torch.mul(slopes[t, :, 3], to_hidden, out=to_gates[t, :, 3])
        to_cell *= kept_forget[t]
        if t > 0:
            torch.mm(to_gates[t].flatten(1), w_hidden, out=to_hidden).mul_(keep[t])
    flat = to_gates.flatten(2).flatten(0, 1)
    to_inputs = (flat @ w_input).view_as(inputs) if further else None
    to_bias = flat.sum(dim=0)
    return to_inputs, (flat.t() @ inputs.flatten(0, 1), flat.t() @ kept_hidden.flatten(0, 1), to_bias, to_bias)


class Stepper:
    """An LSTM asked step by step, without gradients: its weights are prepared once."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.weights = []
        for layer in range(lstm.num_layers):
            bias, w_input, w_hidden = prepare_weights(layer_weights(lstm, layer))
            self.weights.append((bias, torch.cat([w_input, w_hidden])))

    def __call__(self, inputs: Tensor, starts: Tensor, memory: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One step of `run_lstm`: `inputs` (num, input_size), `starts` (num,); output (num, size) and the memory after it."""
        kept_hidden, kept_cell = (part * (1.0 - starts)[:, None] for part in memory)
        hidden, cell = torch.empty_like(kept_hidden), torch.empty_like(kept_cell)
        for layer, (bias, weight) in enumerate(self.weights):
            gates = torch.addmm(bias, torch.cat([inputs, kept_hidden[layer]], dim=1), weight).sigmoid_()
            enter, forget, candidate, leave = gates.chunk(4, dim=1)
            torch.addcmul(forget * kept_cell[layer], enter, candidate.mul_(2).sub_(1), out=cell[layer])
            inputs = torch.mul(leave, (cell[layer] * 2).sigmoid_().mul_(2).sub_(1), out=hidden[layer])
        return inputs, (hidden, cell)
