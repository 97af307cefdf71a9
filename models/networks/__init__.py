"""The networks, each as its paper or published program defines it."""
