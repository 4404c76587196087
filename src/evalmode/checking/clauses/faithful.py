"""faithful: the optimised model computes the same function.

What it does
------------
Measures an optimised model against fp64 on the user's own samples, random ones like them, and edges: zeros, constants,
large, small and denormal values, NaN and infinities, a shorter mask. Every execution shape runs every sample at two
positions or more, and the last batch is filled up. Plain fp32 at several sizes, and once with every result moved by a
rounding, shows what rounding alone does. A candidate may err four times as much, on every output, in every sample and
in every single value; whole numbers are equal, and NaN and infinities in place, wherever plain fp32 and fp64 agree.
With the tolerance `task` it is measured on the user's data instead: at most 2 % of the decisions change and the metric
loses at most one point, as bounds that hold at 95 % for all candidates together.

`optimize` tests it: a plan that fails is excluded, however fast it is. `check` does not, as it has one model alone.

Why it matters
--------------
A graph may be rewritten wrongly in ways that finite values and matching shapes do not show: another activation, another
epsilon, a bias lost in one channel, less precision than was asked for, a batch norm folded twice.

Example
-------
A rewrite that takes a cheaper activation for the same one:

    import torch
    from torch import nn

    model, batch = nn.Sequential(nn.Linear(8, 16), nn.GELU()).eval(), torch.randn(8, 8)
    candidate = nn.Sequential(model[0], nn.GELU(approximate="tanh")).eval()

Use instead
-----------
One that computes the same in another order:

    import torch
    from torch import nn

    model, batch = nn.Sequential(nn.Linear(8, 16), nn.GELU()).eval(), torch.randn(8, 8)
    candidate = lambda x: model[1]((model[0].weight @ x.mT).mT + model[0].bias)

Fix and its safety
------------------
The plan is left out, and the next one taken: plain eager always remains. Where less precision is meant, ask for it:
`tolerance="task"` with `data=`. `evalmode.Tolerance(...)` sets every margin.

Limits
------
It is evidence on the probes that it names. Where rounding alone sends a sample down another branch (a router, top-k, a
rounded value), fp32 has no one answer; such samples are counted apart and compared by share. An operator without fp64
is named, and plain fp32 takes its place. Back ends differ in what they make of NaN and infinities that are fed in
(a maximum may drop NaN): a plan that differs there alone is excluded too, and the report says that this is all.

Source
------
Vignes, "A stochastic arithmetic for reliable scientific computation", Math. Comput. Simul. 35 (1993); Clopper and
Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
"""
