"""Runs a program that says where it hangs, should it take too long:

    python -m dev.stacks SECONDS PROGRAM.py WORDS ...
"""
import faulthandler
import runpy
import sys

if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
