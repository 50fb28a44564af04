"""The CUDA build of torch beside a program that ships the one for processors: chosen, fetched, tried, used, removed."""
