"""Does the harness catch faults? Seeded faults, the harness itself attacked, and the rules of others beside ours."""
