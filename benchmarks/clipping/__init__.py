"""What per-record clipping costs: a clipped sum of ours, of opacus and of torch.func, against the
same step without privacy.

Time and peak memory only; records and weights are drawn at random, and no sum is released.
"""
