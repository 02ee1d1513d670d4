package interop

import "testing"

// TestPrograms reaches servers behind the agents with each counterpart, all
// through one proxy-server.
func TestPrograms(t *testing.T) {
	w := newWorld(t)
	t.Run("KubeAPIServer", func(t *testing.T) { testAPIServer(t, w) })
	t.Run("Curl", func(t *testing.T) { testCurl(t, w) })
	t.Run("OpenSSL", func(t *testing.T) { testOpenSSL(t, w) })
}
