package tunnel

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestStatus(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if !w.server.Ready() {
			w.until("ready", w.server.Ready)
		}
		if w.server.HasAgent("a") || (&Server{}).Ready() {
			t.Error("an agent, or a door, that is not there")
		}
		b := w.agent("b", "agent-2", nil)
		a := w.agent("a", "agent-1", func(a *Agent) {
			a.Labels = map[string]string{"zone": "z1"}
			a.Serves = []string{"10.0.0.0/8"}
		})
		w.ready("a", 1)
		w.ready("b", 1)
		c, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:10250")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := w.server.Dialer("a")(t.Context(), "tcp", "10.0.0.7:1"); err == nil {
			t.Fatal("dialled a closed port")
		}
		time.Sleep(2 * time.Second) // the refused stream lingers
		list := w.server.Clusters()
		if len(list) != 2 || list[0].Cluster != "a" || list[1].Cluster != "b" || len(list[0].Agents) != 1 {
			t.Fatalf("%+v", list)
		}
		st := list[0]
		if st.Dials != 2 || st.Failed != 1 || st.Streams != 1 || st.Clients != 0 || st.Unread != 0 {
			t.Errorf("%+v", st)
		}
		if ag := st.Agents[0]; ag.ID != "agent-1" || ag.State != "ready" || ag.Streams != 1 || ag.Dials != 2 || ag.Loss != 0 ||
			ag.Labels["zone"] != "z1" || len(ag.Serves) != 1 || time.Since(ag.Since) < time.Minute || ag.Remote == "" {
			t.Errorf("%+v", ag)
		}
		text, err := json.Marshal(list)
		if err != nil || !strings.Contains(string(text), `"rttMillis":`) || !strings.Contains(string(text), `"bytesUnread":0`) {
			t.Errorf("%s, %v", text, err)
		}
		if s := a.Sessions(); len(s) != 1 || s[0].Server != "server" || s[0].State != "ready" || s[0].Streams != 1 || s[0].Loss != 0 {
			t.Errorf("the agent's sessions: %+v", s)
		}
		if !w.server.HasAgent("a") {
			t.Error("no agent")
		}

		// The agent drains, and both sides say so.
		done := make(chan error, 1)
		go func() { done <- a.Shutdown(context.Background()) }()
		time.Sleep(time.Second)
		if got := stateOf(w.server, "agent-1"); got != "draining" {
			t.Errorf("state %q", got)
		}
		if s := a.Sessions(); len(s) != 1 || s[0].State != "draining" {
			t.Errorf("the agent's sessions: %+v", s)
		}
		if w.server.HasAgent("a") || !w.server.HasAgent("b") {
			t.Error("a draining agent counts, or another does not")
		}
		c.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}

		// A frozen server is suspected by its agent.
		w.net.Freeze("server")
		w.until("the agent suspects it", func() bool {
			s := b.Sessions()
			return len(s) == 1 && s[0].State == "suspect"
		})
		w.net.Thaw("server")
		w.until("and trusts it again", func() bool {
			s := b.Sessions()
			return len(s) == 1 && s[0].State == "ready"
		})
		_ = w.server.Close()
		if w.server.Ready() {
			t.Error("a closed server is ready")
		}
	})
}
