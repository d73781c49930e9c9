"""An LSTM over sequences in which episodes begin: forward and backward written out."""

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
    if lstm.bidirectional or lstm.dropout or lstm.proj_size or not lstm.bias:
        outputs = []
        for step, kept in zip(inputs, keep, strict=True):
            output, (hidden, cell) = lstm(step[None], (kept * hidden, kept * cell))
            outputs.append(output)
        return torch.cat(outputs), (hidden, cell)
    last_hidden, last_cell = [], []
    for layer in range(lstm.num_layers):
        weights = (getattr(lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        inputs, its_cell = _Layer.apply(inputs, keep, hidden[layer], cell[layer], *weights)
        last_hidden.append(inputs[-1])
        last_cell.append(its_cell)
    return inputs, (torch.stack(last_hidden), torch.stack(last_cell))


class _Layer(torch.autograd.Function):
    """One layer over a sequence; returns its outputs and its last cell state, through which no gradient goes."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, keep: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gates in torch's order: input, forget, candidate, output; tanh(x) is 2 sigmoid(2 x) - 1, in half the time."""
        size, doubled = hidden.shape[-1], slice(2 * hidden.shape[-1], 3 * hidden.shape[-1])
        w_input, w_hidden, b_input, b_hidden = (weight.clone() for weight in weights)
        for weight in (w_input, w_hidden, b_input, b_hidden):
            weight[doubled] *= 2
        length, num, _ = inputs.shape
        gates = torch.addmm(b_input + b_hidden, inputs.flatten(0, 1), w_input.t()).view(length, num, 4 * size)
        kept_hidden, kept_cell, outputs, squashed = (torch.empty(length, num, size, device=inputs.device) for _ in range(4))
        w_hidden, minus_one = w_hidden.t().contiguous(), torch.tensor(-1.0, device=inputs.device)
        for t in range(length):
            torch.mul(hidden, keep[t], out=kept_hidden[t])
            torch.mul(cell, keep[t], out=kept_cell[t])
            gate = gates[t].addmm_(kept_hidden[t], w_hidden).sigmoid_()
            enter, forget, candidate, leave = gate.chunk(4, dim=1)
            torch.add(minus_one, candidate, alpha=2, out=candidate)
            cell = torch.addcmul(forget * kept_cell[t], enter, candidate)
            torch.add(minus_one, (cell + cell).sigmoid_(), alpha=2, out=squashed[t])
            hidden = torch.mul(leave, squashed[t], out=outputs[t])
        ctx.save_for_backward(inputs, keep, gates, kept_hidden, kept_cell, squashed, weights[0], weights[1])
        ctx.mark_non_differentiable(cell)
        return outputs, cell

    @staticmethod
    def backward(ctx: Any, *to_results: Tensor) -> tuple[Tensor | None, ...]:
        """From the loss's gradient by the outputs to those by inputs and weights; the first memory is given, not learned."""
        inputs, keep, gates, kept_hidden, kept_cell, squashed, w_input, w_hidden = ctx.saved_tensors
        to_outputs = to_results[0]
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
            torch.mm(to_gates[t].flatten(1), w_hidden, out=to_hidden).mul_(keep[t])
        flat = to_gates.flatten(2).flatten(0, 1)
        to_inputs = (flat @ w_input).view_as(inputs) if ctx.needs_input_grad[0] else None
        to_bias = flat.sum(dim=0)
        return (
            to_inputs,
            *(None, None, None),
            flat.t() @ inputs.flatten(0, 1),
            flat.t() @ kept_hidden.flatten(0, 1),
            to_bias,
            to_bias,
        )
