"""What runs the cells of a sweep: processes of this machine, tasks on Ray, jobs on Slurm; all behind one protocol."""
