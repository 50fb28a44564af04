"""A GPU build of torch beside a program that ships the CPU build: downloaded, tried, activated."""
