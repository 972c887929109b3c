"""What is learned for a preference. The only place that knows PEFT's formats."""
