"""Where people judge: prompts, completions, tasks, judgments, rules, snapshots and their pages."""
