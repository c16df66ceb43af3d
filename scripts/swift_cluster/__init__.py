"""An OpenStack Swift of a few disks on one machine, to show and to test.

Role: everything runs on 127.0.0.1 below one folder, and ends with the Cluster that began it.
Nothing of Swift is changed.

    layout.py         folders, ports and names
    configuration.py  Swift's configuration files
    processes.py      child processes: started, watched, ended
    disks.py          one disk: an image, its file system, its mount, and what can go wrong with it
    rings.py          which disk has which replica
    cluster.py        all of it together
    bucket.py         what an S3 client does, remembering what was acknowledged
    replicas.py       whether all replicas of an object are the same
    programs.py       what the machine has to have
    faults.py         what can happen to a disk, and what has to be true then
    run_swift.py      starts one of Swift's programs with our swift.conf
"""
