package connect

import (
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestMain(m *testing.M) {
	cert() // in real time: made within a bubble it would be long expired outside
	tunneltest.VerifyNoLeaks(m)
}
