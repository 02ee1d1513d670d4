package tunneltest

import (
	"os"
	"testing"
)

// leakEnv makes this test binary leak on purpose: see TestVerifyNoLeaks.
const leakEnv = "TUNNELTEST_LEAK"

func TestMain(m *testing.M) {
	if os.Getenv(leakEnv) != "" {
		leakPatience = 0
	}
	VerifyNoLeaks(m)
}
