"""The statistics of the verdict: pure functions on arrays and frozen values, each formula with its source.

The way from runs to a verdict::

    runs = [Run(joules_per_token=..., seconds_per_token=..., temperatures_celsius=..., board=..., host=...,
                occasion=...), ...]                              # runs.py's rounds, one fresh process each
    occasions(starts_s, hosts)           -> tuple[str, ...]      # occasions.py: stretches of time on one host
    split_levels(runs, starts=accepted)  -> levels               # levels.py: the last one is the baseline
    learn_noise(levels_of_each_test, ..) -> {test: Noise}        # learning.py: what other tests teach
    compare(levels[-1], new, noise, earlier=levels[:-1], waiting=..., calibrations=...)
                                         -> Comparison           # comparison.py: total, work and pace
    compare_blocks(restarts, ...), compare_ceiling(new, ...)     -> Comparison
    decide(comparison, Policy(limit=0.03, alpha=0.01, family=20, look=1, looks=3))
                                         -> Decision             # rule.py: kind, p, what could be told
    settle(kinds, p_failing, alpha)      -> which fail, too      # rule.py: Holm over all ways of failing
    at_lengths(figures, counts)          -> Reexpressed          # lengths.py: answers of another length

Boards: ``boards.calibration`` from fixed work. Pace: ``pace.measured_waiting`` from windows of waiting.
"""
