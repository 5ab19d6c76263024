"""What each order of contraction costs, and which is cheapest for an operation."""

__all__ = ["cheapest_order", "multiplications"]

# A number written to and read from memory costs about as much as this many multiplications of a
# matrix product.
_MEMORY = 8.0


def multiplications(
    order: str, n: int, r: int, t: int, d: int, e: int, *, full: bool
) -> tuple[float, float]:
    """Return the multiplications of an order, and the numbers it moves through memory.

    Args:
        order: "ghost", "mixed" or "materialise".
        n: Samples.
        r: Directions.
        t: Positions.
        d: Activations per position.
        e: Cotangents per position.
        full: Whether directions are kept apart.

    Returns:
        Both counts, with the symmetry of the kernel used.
    """
    pairs = 0.5 * n * n
    kept = r * r if full else r
    if order == "materialise":
        return n * r * t * d * e + pairs * kept * d * e, 2 * n * r * d * e + n * t * d
    if order == "ghost":
        if full:
            return pairs * t * t * d + pairs * r * r * t * t * e, pairs * t * t * (1 + 3 * r * r)
        return pairs * t * t * (d + r * e), 4 * pairs * t * t
    return (
        pairs * t * t * (d + r * e) + pairs * r * r * t * e,
        pairs * t * (t + 3 * r * e),
    )


def cheapest_order(
    n: int, r: int, t: int, d: int, e: int, *, full: bool, indexed: bool
) -> tuple[str, float]:
    """Return the cheapest order and its multiplications.

    Args:
        n: Samples.
        r: Directions.
        t: Positions.
        d: Activations per position.
        e: Cotangents per position.
        full: Whether directions are kept apart.
        indexed: Whether activations are indices: compared rather than multiplied.

    Returns:
        "ghost", "mixed" or "materialise", and a count.
    """
    several = full and r > 1
    orders = ["ghost"] if not several or t == 1 else ["mixed"]
    if not indexed:
        orders.append("materialise")

    def cost(order: str) -> float:
        products, moved = multiplications(order, n, r, t, 1 if indexed else d, e, full=several)
        return products + _MEMORY * moved

    best = min(orders, key=cost)
    return best, multiplications(best, n, r, t, 1 if indexed else d, e, full=several)[0]
