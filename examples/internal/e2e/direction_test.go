package e2e

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
)

// TestDirections has both programs find each other either way round, and a
// client behind a Unix socket; then both drain with exit code 0.
func TestDirections(t *testing.T) {
	bin := build(t)
	for name, start := range map[string]func(w *world, socket string) (server, agent *clitest.Process){
		"agent dials": func(w *world, socket string) (server, agent *clitest.Process) {
			return w.startServer("--listen", socket, "--agent-listen", w.agents), w.startAgent("--server", "https://"+w.agents)
		},
		"server dials": func(w *world, socket string) (server, agent *clitest.Process) {
			agent = w.startAgent("--listen", w.agents)
			return w.startServer("--listen", socket, "--dial-agent", w.agents+"="+cluster), agent
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, bin)
			path := w.Path("p.sock")
			server, agent := start(w, "unix:"+path+"="+cluster)
			w.waitAgent()
			for _, d := range []*connect.Dialer{w.client, {Network: "unix", Address: path}} {
				c := clitest.Client(t, &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true})
				if status, body := clitest.Get(t, c, "http://"+w.target+"/"); status != 200 || body != slowBody {
					t.Errorf("through %s: %d %q", d.Address, status, body)
				}
			}
			admin := clitest.Client(t, &http.Transport{DisableKeepAlives: true})
			if _, body := clitest.Get(t, admin, "http://"+w.agentAdmin+"/sessions"); !strings.Contains(body, `"server-of-`+cluster) {
				t.Errorf("the agent's sessions: %s", body)
			}
			start := time.Now()
			if code := server.Stop(); code != 0 {
				t.Errorf("server: exit code %d", code)
			}
			if code := agent.Stop(); code != 0 {
				t.Errorf("agent: exit code %d", code)
			}
			t.Logf("both drained in %v", time.Since(start).Round(time.Millisecond))
			if c, err := net.Dial("unix", path); err == nil {
				c.Close()
				t.Error("the socket is still there")
			}
		})
	}
}
