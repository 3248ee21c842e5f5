"""What commands, benchmarks and the demo share of the terminal: parsers, options as values, recipes as arguments, exits."""
