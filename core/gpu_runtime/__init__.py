"""A build of torch for graphics cards beside a program that ships the one for processors: fetched, tried, used."""
