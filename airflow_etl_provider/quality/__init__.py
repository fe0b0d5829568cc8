"""Suites, verdicts and the engines that reach them; importing it loads no engine."""
