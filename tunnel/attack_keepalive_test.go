package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"testing"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// The cluster is selected for each connection, but a header stands in each
// request: the second request of a connection goes to the first one's cluster.
func TestAttackSecondRequestGoesToTheFirstCluster(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newTenants(t)
		for _, who := range []string{"*", "a"} {
			c, err := w.net.Host("client").Dial(context.Background(), "tcp", headerDoor)
			if err != nil {
				t.Fatal(err)
			}
			conn := tls.Client(c, w.tlsBy(w.ca, tunneltest.CertOptions{Cluster: who}))
			r := bufio.NewReader(conn)
			// A target that is refused before it is dialled keeps the connection.
			_, _ = io.WriteString(conn, "GET http://10.0.0.7:80/ HTTP/1.1\r\nHost: x\r\nX-Cluster: a\r\n\r\n")
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_, _ = io.WriteString(conn, "CONNECT 10.0.0.7:80 HTTP/1.1\r\nHost: x\r\nX-Cluster: b\r\n\r\n")
			res, err = http.ReadResponse(r, &http.Request{Method: "CONNECT"})
			if err != nil {
				t.Logf("%s: refused: %v", who, err)
				continue
			}
			got := make([]byte, 1)
			if res.StatusCode == 200 {
				_, _ = io.ReadFull(r, got)
			}
			if res.StatusCode == 200 && string(got) != "b" {
				t.Errorf("certificate %q: the request with X-Cluster: b was answered %s by cluster %q", who, res.Status, got)
			}
			conn.Close()
		}
	})
}
