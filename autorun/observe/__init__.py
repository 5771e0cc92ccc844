"""Reading what autorun knows: progress, activity, failures, explanations, checks and the doctor."""
