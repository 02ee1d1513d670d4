package main

import (
	"os"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// asProgram makes this test binary the program itself, which is in the network
// namespace of the thread that starts it.
const asProgram = "PATH_CONTROLLER_TEST_RUNS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main() // and exits
	}
	tunneltest.VerifyNoLeaks(m)
}
