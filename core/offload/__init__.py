"""The paper: linears divided between CPU and GPU, and the manager that streams their rows."""
