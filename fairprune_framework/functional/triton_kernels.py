"""The kernels of `fused.py`: needs Triton at import. One program reduces a block of columns of one contrast, in one slot or over all
tokens."""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def slot_variance(values, rows, present, found, variants, slots, columns, BLOCK: tl.constexpr):
    """See `fused.slot_variance`."""
    place = tl.program_id(0).to(tl.int64)
    contrast, slot = place // slots, place % slots
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    first_row = tl.load(rows + contrast * variants * slots + slot)
    first = tl.load(values + first_row * columns + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    count = 1.0
    for variant in range(1, variants):
        here = tl.load(present + contrast * variants + variant).to(tl.float32)
        row = tl.load(rows + (contrast * variants + variant) * slots + slot)
        value = tl.load(values + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        delta = tl.where(here > 0, value - first, 0.0)
        total += delta
        squares += delta * delta
        count += here
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    variance = tl.where(total != total, total, variance)
    tl.store(found + place * columns + column, variance, mask=inside)


@triton.jit
def product_sums(acts, grads, shown, found, variants, tokens, columns, POWER: tl.constexpr, BLOCK: tl.constexpr):
    """See `fused.product_sums`."""
    contrast = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros([BLOCK], dtype=tl.float64)
    for variant in range(variants):
        text = tl.zeros([BLOCK], dtype=tl.float32)
        for token in range(tokens):
            place = (contrast * variants + variant) * tokens + token
            here = tl.load(shown + place).to(tl.int32)
            seen = column < columns * here  # no column of a token that the mask leaves out
            act = tl.load(acts + place * columns + column, mask=seen, other=0.0).to(tl.float32)
            grad = tl.load(grads + place * columns + column, mask=seen, other=0.0).to(tl.float32)
            product = act * grad
            if POWER == 1:
                product = tl.abs(product)
            if POWER == 2:
                product = product * product
            text += product
        total += text.to(tl.float64)
    tl.store(found + contrast * columns + column, total, mask=inside)
