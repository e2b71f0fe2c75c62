from simlap.cli import main

if __name__ == "__main__":
    main()
