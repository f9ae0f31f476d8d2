"""What every stage needs: random numbers, devices, processes, files, messages."""
