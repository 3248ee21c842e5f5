"""What commands, benchmarks and the demo share at the terminal: parsers, values of options, recipes as arguments, exits."""
