"""Pages for operators: cycles and their stages, policy versions, gate reports, promote and roll back."""
