"""How good judgments are: agreement, consensus, annotators, flips, and what waits. Reads rows, writes none."""
