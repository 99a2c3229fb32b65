import sys,json,time,torch
sys.path.insert(0,'/work/wt/train/tools/train')
from model import Model
torch.set_num_threads(1)
import ctypes
l=ctypes.CDLL(None)
if len(sys.argv)>1: print(l.mallopt(-3,1<<30),l.mallopt(-1,2**31-1))
m=Model(json.load(open('/work/wt/train/tools/train/config.json')),loc0=1000)
B=64
x=torch.randint(0,256,(B,112,112,3),dtype=torch.uint8)
for i in range(6):
    t=time.time()
    y=m.vision(x); t1=time.time(); (y*y).sum().backward(); t2=time.time()
    for q in m.p.values(): q.grad=None
    print(t1-t,t2-t1,B/(t2-t),'img/s', 1.05*B/(t2-t),'GF/s')
sys.exit()
with profile(activities=[ProfilerActivity.CPU]) as p:
    y=m.vision(x);(y*y).sum().backward()
print(p.key_averages().table(sort_by='self_cpu_time_total',row_limit=22,max_name_column_width=40))
