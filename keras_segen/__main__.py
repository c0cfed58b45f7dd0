"""python -m keras_segen: the same as the command keras-segen."""

from keras_segen.cli import main

if __name__ == "__main__":
    main()
