"""The stage gate: metrics, the lexical baseline, slices, the bootstrap, the rule and its report."""
